-- What the edge needs to know of an organisation beyond who it is.

alter table plans
    add column requests_per_second int check (requests_per_second > 0),     -- null: no limit
    add column request_burst int check (request_burst > 0),                 -- null: a second's worth
    add column concurrent_requests int check (concurrent_requests > 0),     -- null: no limit
    add column max_body_bytes bigint check (max_body_bytes > 0),            -- null: the edge's own
    add column weight int not null default 1 check (weight between 1 and 1000);

update plans set (requests_per_second, request_burst, concurrent_requests, max_body_bytes, weight) =
    (200, 2000, 500, 33554432, 1) where key = 'starter';
update plans set (requests_per_second, request_burst, concurrent_requests, max_body_bytes, weight) =
    (1000, 5000, 1000, 33554432, 2) where key = 'community';
update plans set (concurrent_requests, weight) = (2000, 4) where key = 'professional';
update plans set weight = 8 where key = 'enterprise';

alter table organizations
    add column pools jsonb not null default '{}' check (jsonb_typeof(pools) = 'object'),
    add column maintenance_mode text check (maintenance_mode in ('full', 'hold', 'read_only')),
    add column maintenance_retry_after int not null default 30 check (maintenance_retry_after between 1 and 86400),
    add column maintenance_bypass bytea check (length(maintenance_bypass) = 32),        -- SHA-256 of the secret
    add column maintenance_hold_seconds int not null default 10 check (maintenance_hold_seconds between 1 and 300),
    add column maintenance_hold_requests int not null default 100 check (maintenance_hold_requests between 1 and 100000);

-- Under the status `maintenance` nothing is served; the other modes leave an organisation active.
update organizations set maintenance_mode = 'full' where status = 'maintenance';
