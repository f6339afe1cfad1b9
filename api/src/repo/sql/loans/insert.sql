-- Primary key of members; none when there is no such member.
insert into loans (id, member_id, amount, currency, installments, first_due_on, purpose)
select $1, m.id, $3, $4, $5, $6, $7 from members m where m.id = $2
