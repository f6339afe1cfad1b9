-- Indexes: primary key or invoices_patient, invoice_payments_invoice for each invoice of the page.
select i.id, i.patient_id, i.hospitalization_id, i.amount, i.currency, i.description, i.due_on, i.created_at, i.updated_at,
       i.settled_at, i.cancelled_at, coalesce(p.paid, 0)::bigint as paid
from invoices i
left join lateral (
    select sum(case when p.reverses is null then p.amount else -p.amount end) as paid
    from invoice_payments p
    where p.invoice_id = i.id) p on true
where i.id > $1
  and ($3::uuid is null or i.patient_id = $3)
  and ($4::text is null
       or ($4 = 'paid' and i.settled_at is not null)
       or ($4 = 'cancelled' and i.cancelled_at is not null))
order by i.id
limit $2
