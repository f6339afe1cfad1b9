-- Indexes: primary key, invoice_payments_invoice.
select i.id, i.patient_id, i.hospitalization_id, i.amount, i.currency, i.description, i.due_on, i.created_at, i.updated_at,
       i.settled_at, i.cancelled_at, coalesce(p.paid, 0)::bigint as paid
from invoices i
left join lateral (
    select sum(case when p.reverses is null then p.amount else -p.amount end) as paid
    from invoice_payments p
    where p.invoice_id = i.id) p on true
where i.id = $1
limit 1
