insert into members (id, first_name, last_name, email, phone)
values ($1, $2, $3, $4, $5)
returning id, first_name, last_name, email, phone, created_at, updated_at
