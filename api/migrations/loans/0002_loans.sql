-- Loans without interest, who guarantees them, and what was paid. Amounts are minor units of a currency (ISO 4217).

create table loans (
    id uuid primary key,
    member_id uuid not null references members (id),
    amount bigint not null check (amount between 1 and 1000000000000),
    currency text not null check (currency ~ '^[A-Z]{3}$'),
    installments int not null check (installments between 1 and 240),
    first_due_on date,
    purpose text check (length(purpose) between 1 and 500),
    status text not null default 'draft' check (status in ('draft', 'approved', 'active', 'repaid', 'written_off')),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create index loans_member on loans (member_id);

create table loan_guarantors (
    loan_id uuid not null references loans (id) on delete cascade,
    member_id uuid not null references members (id),
    primary key (loan_id, member_id)
);
create index loan_guarantors_member on loan_guarantors (member_id);

-- Out to the borrower, in from the borrower. Never changed and never removed: a mistake is reversed by another one.
create table payments (
    id uuid primary key,
    loan_id uuid not null references loans (id),
    direction text not null check (direction in ('out', 'in')),
    amount bigint not null check (amount between 1 and 1000000000000),
    currency text not null check (currency ~ '^[A-Z]{3}$'),
    paid_on date not null,
    note text check (length(note) between 1 and 500),
    reverses uuid unique references payments (id),
    created_by uuid not null references users (id),
    created_at timestamptz not null default now()
);
create index payments_loan on payments (loan_id, id);

create function payments_stay() returns trigger language plpgsql as $$
begin
    raise exception 'payments are reversed, never changed' using errcode = 'restrict_violation';
end $$;
create trigger payments_stay before update or delete on payments for each row execute function payments_stay();
revoke update, delete on payments from gmah_tenant;
