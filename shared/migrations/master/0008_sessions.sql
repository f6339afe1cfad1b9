-- Logins end with a suspension: sessions that were begun in an earlier generation than this are over.
alter table organizations add column sessions_since bigint not null default 0;
