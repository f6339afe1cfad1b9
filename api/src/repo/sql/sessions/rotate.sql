-- Index: sessions_refresh. One statement: of two exchanges of the same token one finds it.
update sessions s
set access_hash = $2, access_expires_at = $3, refresh_hash = $4, refresh_expires_at = $5
from users u
where s.refresh_hash = $1 and s.refresh_expires_at > now() and u.id = s.user_id and u.disabled_at is null
