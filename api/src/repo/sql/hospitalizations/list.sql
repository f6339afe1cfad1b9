-- Indexes: primary key, hospitalizations_patient, hospitalizations_ward.
select id, patient_id, ward, reason, admitted_at, discharged_at, created_at, updated_at
from hospitalizations
where id > $1
  and ($3::uuid is null or patient_id = $3)
  and ($4::text is null or ward = $4)
  and (not $5 or discharged_at is not null)
order by id
limit $2
