-- Deleting: closed at once, kept for a while, then destroyed with its key.
alter table organizations
    add column deleted_at timestamptz,
    add column purge_after timestamptz,
    add column purged_at timestamptz,                   -- since when nothing of it is left but this row and its backups
    add column status_before text,                      -- what it goes back to
    add column database_before text,
    add column certificate jsonb;                       -- what was removed, and when
update organizations set purged_at = updated_at where status = 'deleted';

-- A key that older ones are kept beside, because backups need them, is not one whose exchange is under way.
alter table organization_keys add column exchanged_at timestamptz;

-- Until it is destroyed it may come back, and so nobody else has its slug.
create unique index organizations_slug_kept on organizations (slug) where purged_at is null;
create index organizations_purge_after on organizations (purge_after) where status = 'deleted' and purged_at is null;
