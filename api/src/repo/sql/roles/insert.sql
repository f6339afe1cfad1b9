insert into roles (key, title, permissions)
select $1, $2, $3 where (select count(*) from roles) < 100
on conflict (key) do nothing
