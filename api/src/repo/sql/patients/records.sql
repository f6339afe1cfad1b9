-- Index: primary key.
select id, first_name, last_name, birth_date, phone, created_at, updated_at, national_id, address, notes
from patients
where id > $1
order by id
limit $2
