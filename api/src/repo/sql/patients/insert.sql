insert into patients (id, first_name, last_name, birth_date, phone, national_id, national_id_index, address, notes)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (national_id_index) do nothing
returning id, first_name, last_name, birth_date, phone, created_at, updated_at, national_id, address, notes
