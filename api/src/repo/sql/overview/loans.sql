-- Every payment of loans that are active.
select p.currency, sum(case when (p.direction = 'out') = (p.reverses is null) then p.amount else -p.amount end)::bigint as amount
from payments p
join loans l on l.id = p.loan_id
where l.status = 'active'
group by p.currency
order by p.currency
limit 200
