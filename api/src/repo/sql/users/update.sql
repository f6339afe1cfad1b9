-- Primary key. What is null stays.
update users
set name = coalesce($2, name), role = coalesce($3, role), updated_at = now(),
    disabled_at = case when $4::boolean is null then disabled_at when $4 then coalesce(disabled_at, now()) end
where id = $1
