-- Index: primary key, or members_family. A search looks at every member, of whom a plan has so many.
select id, first_name, last_name, email, phone, family_id, created_at, updated_at
from members
where id > $1
  and ($3::uuid is null or family_id = $3)
  and ($4::text is null or lower(first_name || ' ' || last_name || ' ' || coalesce(email, '')) like $4)
order by id
limit $2
