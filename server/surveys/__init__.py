# SPDX-License-Identifier: Apache-2.0
"""The survey at the coordinator: asked for, stored, compared, shown.

loop       one message to each site, the answers kept as they come
record     what the sites answered: `survey.json` in the run's folder
figures    shares, distances and quantiles from noisy tables, with their standard errors
findings   what follows for the study: who is alike, who lacks a class, who is small
page       the HTML page, and `charts` its pictures
constants  centre and scale of columns, for the study file
"""
