-- Primary key of members: one row for each that there is.
insert into loan_guarantors (loan_id, member_id)
select $1, m.id from members m where m.id = any($2)
