-- Primary keys; none when there is no such family.
update members
set first_name = $2, last_name = $3, email = $4, phone = $5, family_id = $6, updated_at = now()
where id = $1 and ($6::uuid is null or exists (select 1 from families where id = $6))
returning id, first_name, last_name, email, phone, family_id, created_at, updated_at
