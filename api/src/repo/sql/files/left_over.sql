-- Index: files_unfinished. No upload takes longer than ten minutes.
select id
from files
where state = 'deleted' or (state = 'uploading' and created_at < now() - interval '20 minutes')
order by created_at
limit 100
