-- Index: primary key.
select id, name, media_type, size, sha256, attached_to, created_by, created_at
from files
where id = $1 and state = 'stored'
limit 1
