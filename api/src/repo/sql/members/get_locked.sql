-- Index: primary key.
select id, first_name, last_name, email, phone, family_id, created_at, updated_at
from members
where id = $1
limit 1
for update
