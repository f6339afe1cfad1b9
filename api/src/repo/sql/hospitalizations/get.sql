-- Index: primary key.
select id, patient_id, ward, reason, admitted_at, discharged_at, created_at, updated_at
from hospitalizations
where id = $1
limit 1
