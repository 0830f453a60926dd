//! The typed client of the IPVS family against the kernel and against `ipvsadm`.
