-- Indexes: primary key, files_attached.
select id, name, media_type, size, sha256, attached_to, created_by, created_at
from files
where id > $1 and state = 'stored' and ($3::uuid is null or attached_to = $3)
order by id
limit $2
