insert into users (id, email, name, role, password_hash)
values ($1, $2, $3, $4, $5)
on conflict (email) do nothing
