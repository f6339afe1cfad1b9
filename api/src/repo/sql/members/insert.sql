-- Primary key of families; none when there is no such family.
insert into members (id, first_name, last_name, email, phone, family_id)
select $1, $2, $3, $4, $5, $6
where $6::uuid is null or exists (select 1 from families where id = $6)
returning id, first_name, last_name, email, phone, family_id, created_at, updated_at
