-- Every invoice that is not cancelled, and its payments.
select i.currency, sum(i.amount - coalesce(p.paid, 0))::bigint as amount
from invoices i
left join lateral (
    select sum(case when p.reverses is null then p.amount else -p.amount end) as paid
    from invoice_payments p
    where p.invoice_id = i.id) p on true
where i.cancelled_at is null and i.amount > coalesce(p.paid, 0)
group by i.currency
order by i.currency
limit 200
