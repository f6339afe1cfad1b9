-- Indexes: primary key, invoice_payments_invoice.
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
where id = $1
limit 1
