insert into settings (module, value)
values ($1, $2)
on conflict (module) do update set value = excluded.value, updated_at = now()
