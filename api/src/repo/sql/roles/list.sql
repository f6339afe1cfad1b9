-- An organisation has a handful.
select key, title, permissions, is_builtin
from roles
order by key
limit 1000
