insert into payments (id, loan_id, direction, amount, currency, paid_on, note, reverses, created_by)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
