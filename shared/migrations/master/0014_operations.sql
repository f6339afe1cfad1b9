-- Operations that may be killed after any step, and that another runner goes on with.
alter table operations
    -- What it works on, of which one operation at a time may: `organization/<id>`, `slug/<slug>`, `fleet/<what>`.
    add column subject text,
    -- Raised by every runner; what an older one still writes is refused.
    add column fence bigint not null default 0,
    add column result jsonb,
    add column updated_at timestamptz not null default now();
update operations set subject = coalesce('slug/' || (input ->> 'slug'), 'operation/' || id);
alter table operations alter column subject set not null;

create index operations_subject on operations (subject, created_at desc, id desc);
create index operations_organization_running on operations (organization_id) where state = 'running';
create index operations_newest on operations (created_at desc, id desc);

-- What a step answered, which whoever goes on is told.
alter table operation_steps alter column detail set default 'null';
update operation_steps set detail = 'null';
-- Those of earlier versions answered nothing, and reserved before their first step.
update operations set result = to_jsonb(organization_id) where kind = 'tenant.create' and state = 'done';

-- The manifest of an operation on many organisations: how far each has come.
create table operation_items (
    operation_id uuid not null references operations (id) on delete cascade,
    organization_id uuid not null references organizations (id) on delete cascade,
    position int not null,
    state text not null default 'pending' check (state in ('pending', 'running', 'done', 'failed')),
    error text,
    detail jsonb not null default 'null',
    started_at timestamptz,
    finished_at timestamptz,
    primary key (operation_id, organization_id)
);
create index operation_items_organization on operation_items (organization_id);
