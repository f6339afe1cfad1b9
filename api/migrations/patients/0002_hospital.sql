-- What only the program may read is sealed for (patients, column, id). The index of the national id is blind: equal ids
-- have equal ones, and nobody without the organisation's key can compute any.
alter table patients
    add column national_id bytea,
    add column national_id_index bytea check (length(national_id_index) = 32),
    add column address bytea,
    add column notes bytea;
create unique index patients_national_id on patients (national_id_index);

create table hospitalizations (
    id uuid primary key,
    patient_id uuid not null references patients (id),
    ward text not null check (length(ward) between 1 and 100),
    reason bytea,                                       -- sealed for (hospitalizations, reason, id)
    admitted_at timestamptz not null,
    discharged_at timestamptz check (discharged_at >= admitted_at),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create index hospitalizations_patient on hospitalizations (patient_id, id);
-- Nobody is in two beds.
create unique index hospitalizations_one_at_a_time on hospitalizations (patient_id) where discharged_at is null;
create index hospitalizations_current on hospitalizations (id) where discharged_at is null;
create index hospitalizations_ward on hospitalizations (ward, id);

-- Amounts are minor units of a currency (ISO 4217). An invoice is open until it is paid in full, or cancelled.
create table invoices (
    id uuid primary key,
    patient_id uuid not null references patients (id),
    hospitalization_id uuid references hospitalizations (id),
    amount bigint not null check (amount between 1 and 1000000000000),
    currency text not null check (currency ~ '^[A-Z]{3}$'),
    description text check (length(description) between 1 and 500),
    due_on date,
    settled_at timestamptz,                             -- since when all of it is paid
    cancelled_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create index invoices_patient on invoices (patient_id, id);
create index invoices_open on invoices (id) where settled_at is null and cancelled_at is null;
create index invoices_hospitalization on invoices (hospitalization_id);

-- Never changed and never removed: a mistake is reversed by another one.
create table invoice_payments (
    id uuid primary key,
    invoice_id uuid not null references invoices (id),
    amount bigint not null check (amount between 1 and 1000000000000),
    currency text not null check (currency ~ '^[A-Z]{3}$'),
    paid_on date not null,
    note text check (length(note) between 1 and 500),
    reverses uuid unique references invoice_payments (id),
    created_by uuid not null references users (id),
    created_at timestamptz not null default now()
);
create index invoice_payments_invoice on invoice_payments (invoice_id, id);

create function invoice_payments_stay() returns trigger language plpgsql as $$
begin
    raise exception 'payments are reversed, never changed' using errcode = 'restrict_violation';
end $$;
create trigger invoice_payments_stay before update or delete on invoice_payments
    for each row execute function invoice_payments_stay();
revoke update, delete on invoice_payments from gmah_tenant;
