insert into members (id, first_name, last_name, email, phone)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])
