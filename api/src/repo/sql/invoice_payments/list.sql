-- Indexes: invoice_payments_invoice; the unique one on reverses.
select p.id, p.invoice_id, p.amount, p.currency, p.paid_on, p.note, p.reverses, r.id as reversed_by, p.created_at
from invoice_payments p
left join invoice_payments r on r.reverses = p.id
where p.invoice_id = $1 and p.id > $2
order by p.id
limit $3
