-- Primary key. What is null stays.
update roles
set title = coalesce($2, title), permissions = coalesce($3, permissions), updated_at = now()
where key = $1
