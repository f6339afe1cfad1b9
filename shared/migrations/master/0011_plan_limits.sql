-- What a plan allows beside members; null: unlimited. organizations.limits may say otherwise for one organisation, under
-- the keys members, users and storage_bytes.
alter table plans
    add column max_users int check (max_users > 0),
    add column max_storage_bytes bigint check (max_storage_bytes >= 0);
update plans set max_users = 5, max_storage_bytes = 1073741824 where key = 'starter';
update plans set max_users = 25, max_storage_bytes = 10737418240 where key = 'community';
update plans set max_users = 100, max_storage_bytes = 107374182400 where key = 'professional';
