-- Index: files_unfinished.
select id
from files
where state = 'deleted' or (state = 'uploading' and created_at < now() - interval '1 hour')
order by created_at
limit 100
