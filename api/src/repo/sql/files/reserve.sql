insert into files (id, name, media_type, size, attached_to, created_by, state)
values ($1, $2, 'application/octet-stream', $3, $4, $5, 'uploading')
