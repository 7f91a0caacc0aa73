//! The controllers' cases: slices, mirroring and Endpoints.
