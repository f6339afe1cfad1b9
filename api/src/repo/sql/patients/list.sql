-- Index: primary key, or patients_national_id.
select id, first_name, last_name, birth_date, phone, created_at, updated_at
from patients
where id > $1 and ($3::bytea is null or national_id_index = $3)
order by id
limit $2
