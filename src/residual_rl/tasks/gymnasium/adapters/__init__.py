"""Adapters of packages of envs. They are read by their path, in the interpreter that has the package, and
import no part of this one."""
