-- Index: sessions_expiry. A few at a time, so that a login never pays for a long absence.
delete from sessions
where id in (select id from sessions where refresh_expires_at < now() order by refresh_expires_at limit 20)
