-- Indexes: primary key or invoices_patient, invoice_payments_invoice for each invoice that is looked at.
select * from (
    select i.id, i.patient_id, i.hospitalization_id, i.amount, i.currency, i.description, i.due_on, i.created_at, i.updated_at,
           coalesce(p.paid, 0)::bigint as paid,
           case when i.cancelled_at is not null then 'cancelled'
                when coalesce(p.paid, 0) >= i.amount then 'paid' else 'open' end as status
    from invoices i
    left join lateral (
        select sum(case when p.reverses is null then p.amount else -p.amount end) as paid
        from invoice_payments p
        where p.invoice_id = i.id) p on true) i
where id > $1
  and ($3::uuid is null or patient_id = $3)
  and ($4::text is null or status = $4)
order by id
limit $2
