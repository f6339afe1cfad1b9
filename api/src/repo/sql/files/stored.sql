-- Primary key. None when it was given up meanwhile.
update files set state = 'stored', size = $2, sha256 = $3, media_type = $4
where id = $1 and state = 'uploading'
returning id, name, media_type, size, sha256, attached_to, created_by, created_at
