-- Indexes: the primary key; the unique one on reverses.
select p.id, p.loan_id, p.direction, p.amount, p.currency, p.paid_on, p.note, p.reverses, r.id as reversed_by, p.created_at
from payments p
left join payments r on r.reverses = p.id
where p.loan_id = $1 and p.id = $2
limit 1
