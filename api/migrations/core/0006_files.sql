-- Files: what they are; their bytes lie in the platform's object store, under the organisation's id and the file's.
create table files (
    id uuid primary key,
    name text not null check (length(name) between 1 and 200),
    media_type text not null check (length(media_type) between 1 and 100),
    size bigint not null check (size >= 0),             -- while it is uploaded: what is reserved for it
    sha256 bytea check (length(sha256) = 32),
    attached_to uuid,                                   -- whatever it is about
    state text not null check (state in ('uploading', 'stored', 'deleted')),
    created_by uuid not null references users (id),
    created_at timestamptz not null default now()
);
create index files_attached on files (attached_to, id);
create index files_unfinished on files (created_at) where state <> 'stored';
