-- Primary key.
update files set state = 'deleted'
where id = $1 and state = 'stored'
returning id, name, media_type, size, sha256, attached_to, created_by, created_at
