-- Indexes: primary keys or loans_member or loans_status, payments_loan for each loan of the page.
select l.id, l.member_id, l.amount, l.currency, l.installments, l.first_due_on, l.purpose, l.status, l.created_at, l.updated_at,
       coalesce(p.paid_out, 0)::bigint as paid_out, coalesce(p.repaid, 0)::bigint as repaid,
       array(select g.member_id from loan_guarantors g where g.loan_id = l.id order by g.member_id) as guarantor_ids
from loans l
left join lateral (
    select sum(case when p.reverses is null then p.amount else -p.amount end) filter (where p.direction = 'out') as paid_out,
           sum(case when p.reverses is null then p.amount else -p.amount end) filter (where p.direction = 'in') as repaid
    from payments p
    where p.loan_id = l.id) p on true
where l.id > $1
  and ($3::uuid is null or l.member_id = $3)
  and ($4::text is null or l.status = $4)
order by l.id
limit $2
