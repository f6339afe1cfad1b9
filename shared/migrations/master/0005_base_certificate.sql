-- The base domain's own certificate may be ordered too: its row in `certificate_orders` names no customer's claim.

alter table certificate_orders drop constraint certificate_orders_pkey;
alter table certificate_orders
    add column id uuid primary key default gen_random_uuid(),
    add column base_domain text unique,
    add column shown text[] not null default '{}',       -- values of TXT records that may still stand in the zone
    alter column domain_id drop not null,
    add constraint certificate_orders_domain unique (domain_id),
    add constraint certificate_orders_subject check (num_nonnulls(domain_id, base_domain) = 1);

-- private_key of such a one is sealed for certificates/*.<base_domain>.
alter table certificates add column base_domain text;
create index certificates_base_domain on certificates (base_domain, created_at desc) where base_domain is not null;

create or replace function certificates_changed() returns trigger language plpgsql as $$
begin
    if coalesce(new.base_domain, old.base_domain) is not null then
        -- A word that older routers know: one that they do not would have them doubt everything.
        perform pg_notify('gmah_catalog', 'orders');
    end if;
    update organizations set revision = revision where id = (
        select organization_id from organization_domains where id = coalesce(new.domain_id, old.domain_id));
    return null;
end $$;

-- A statement that changed nothing is no news: with triggers for each statement, looking whether a new ticket secret was
-- due told everybody that there was one, who then looked again, and so on without end.
drop trigger acme_challenges_changed on acme_challenges;
create trigger acme_challenges_changed after insert or update or delete on acme_challenges
    for each row execute function edge_part_changed('challenges');
drop trigger ticket_secrets_changed on ticket_secrets;
create trigger ticket_secrets_changed after insert or delete on ticket_secrets
    for each row execute function edge_part_changed('tickets');
drop trigger certificate_orders_changed on certificate_orders;
create trigger certificate_orders_changed after insert on certificate_orders
    for each row execute function edge_part_changed('orders');
