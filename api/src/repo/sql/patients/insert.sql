insert into patients (id, first_name, last_name, birth_date, phone)
values ($1, $2, $3, $4, $5)
returning id, first_name, last_name, birth_date, phone, created_at, updated_at
