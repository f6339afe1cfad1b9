-- Primary key, and patients_national_id: none when it is another patient's.
update patients
set first_name = $2, last_name = $3, birth_date = $4, phone = $5, national_id = $6, national_id_index = $7, address = $8,
    notes = $9, updated_at = now()
where id = $1 and not exists (select 1 from patients o where o.national_id_index = $7 and o.id <> $1)
returning id, first_name, last_name, birth_date, phone, created_at, updated_at, national_id, address, notes
