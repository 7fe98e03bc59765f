# `make help` lists the targets. Everything runs in the environment .venv, which make creates.
PYTHON ?= python3
EXECUTE ?=
NB ?=
OPTIONS ?=
NAME ?=
PAPER ?= a4
FOLDER ?=
NOTEBOOKS ?= book

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
# Unpacked from the archive of `make offline`: every package is here, and no other place is asked.
WHEELS := $(if $(wildcard wheelhouse/MADE_FOR),--no-index --find-links wheelhouse)

# What decides a notebook's numbers, fixed for every target that runs one (tools/sweep.py varies it).
export OMP_NUM_THREADS ?= 1

# Whole and from scratch (Sphinx warns only of the pages that it reads again). Warnings are on stderr.
# $(1) is the folder to build.
define build
@rm -rf $(1)/_build/html
@mkdir -p _build
@$(BIN)/jupyter-book build --quiet --all -W --keep-going -n $(1) >_build/book.log || { \
	echo "book: built with warnings or errors, see above (more in _build/book.log)"; exit 1; }
@$(BIN)/python -c 'import pathlib; print("book:", pathlib.Path("$(1)/_build/html/index.html").resolve().as_uri())'
endef

.DEFAULT_GOAL := help
.PHONY: help book test test-extras sweep faults study lab student teacher handouts mark offline walk execute constraints clean distclean

help: ## list the targets (default)
	@echo "Smaller Models, Fewer Joules: a hands-on course. Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-20s %s\n' "$$name" "$$text"; done
	@echo "A Python other than python3:  make book PYTHON=python3.12"
	@echo "Options of the command behind a target:  make sweep OPTIONS='--only 02_pruning_threshold --arm seed1'"

# --- the environment ---
# The stamp is written last, so an interrupted installation is taken up again.
$(STAMP): requirements.txt constraints.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)' || { \
		echo "make: the course needs Python 3.11 or newer, and '$(PYTHON)' is: $$("$(PYTHON)" --version 2>&1)"; \
		echo "make: name another one, for example: make $(or $(MAKECMDGOALS),book) PYTHON=python3.12"; exit 1; }
	@rm -f $@
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "environment: creating $(VENV) with $$("$(PYTHON)" --version)"; "$(PYTHON)" -m venv --clear $(VENV); }
	@echo "environment: installing the packages in requirements.txt, some minutes (log: $(VENV)/install.log)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(WHEELS) -r requirements.txt \
		>$(VENV)/install.log 2>&1 || { \
		grep -v '^WARNING' $(VENV)/install.log | tail -n 15; \
		$(if $(WHEELS),echo "environment: the packages in wheelhouse/ are for $$(cat wheelhouse/MADE_FOR)"; ) \
		echo "environment: the installation failed; the whole log is $(VENV)/install.log"; exit 1; }
	@touch $@

# --- the reader's targets ---
book: $(STAMP) ## build the book and print its address; EXECUTE=1 runs every notebook here first
ifeq ($(EXECUTE),)
	$(call build,.)
else
	@rm -rf _build/executed
	@COURSE_CLAIMS=report $(BIN)/python tools/execute.py --copy-to _build/executed
	$(call build,_build/executed)
endif

lab: $(STAMP) ## open the chapters in JupyterLab; those of another folder: NOTEBOOKS=../my-course/book
	@COURSE_CLAIMS=report $(BIN)/jupyter lab $(OPTIONS) "$(NOTEBOOKS)"

# --- a class, a workshop ---
student: $(STAMP) ## write the notebooks to work in, without outputs and solutions: _build/student, student.zip
	@$(BIN)/python tools/classroom.py student $(OPTIONS)

teacher: $(STAMP) ## write the notebooks with the solutions unfolded: _build/teacher, teacher.zip
	@$(BIN)/python tools/classroom.py teacher $(OPTIONS)

handouts: $(STAMP) ## set two pages for each notebook and the poster: _build/handouts; PAPER=us-letter
	@$(BIN)/python tools/handouts.py --paper $(PAPER) $(OPTIONS)

mark: $(STAMP) ## mark what was handed in with the course's checkers: FOLDER=handed_in, writes marks.csv
	@if [ -z "$(FOLDER)" ]; then echo "make: name the folder with the notebooks: make mark FOLDER=handed_in"; exit 1; fi
	@$(BIN)/python tools/mark.py "$(FOLDER)" $(OPTIONS)

offline: $(STAMP) ## write one archive that installs and tests itself without a network (gigabytes)
	@$(BIN)/python tools/offline.py $(OPTIONS)

# --- the checks ---
# Every part runs, whatever the part before it said; one failure fails the target. The notebooks run
# one after the other, since some of them measure time.
test: $(STAMP) ## build the book, test course_lib and the pages, verify every notebook
	@sh tools/browser.sh $(BIN)/python
	@failed=; export COURSE_CLAIMS=strict; \
	echo "== the book"; $(MAKE) --no-print-directory book EXECUTE= || failed="$$failed book"; \
	echo "== the tests"; $(BIN)/python -m pytest -q -n 2 --dist loadfile tests || failed="$$failed tests"; \
	echo "== the notebooks"; $(BIN)/python -m pytest -q book || failed="$$failed notebooks"; \
	if [ -n "$$failed" ]; then echo "make test: FAILED:$$failed"; exit 1; fi; \
	echo "make test: the book, the tests and the notebooks passed"

# A cluster's, the judged energy tools', Ray's: pinned in pyproject.toml; what they need in turn is not.
test-extras: $(STAMP) ## install the optional extras, then run their tests and verify their notebooks
	@echo "extras: installing (log: $(VENV)/extras.log)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(WHEELS) -c constraints.txt \
		-e '.[cluster,energy-tools,serve-ray]' >$(VENV)/extras.log 2>&1 || { tail -n 20 $(VENV)/extras.log; exit 1; }
	@$(BIN)/python -m pip uninstall -y amdsmi >>$(VENV)/extras.log 2>&1	# of zeus: without its card, Ray's import fails beside it
	@export COURSE_CLAIMS=strict COURSE_EXTRAS=1; $(BIN)/python -m pytest -q -m extra tests book

walk: $(STAMP) ## use the course in its three ways, from a clean clone, and stop where something fails (an hour and more)
	@$(BIN)/python tools/walk.py $(OPTIONS)

sweep: $(STAMP) ## verify every notebook under other seeds, threads, instructions and data
	@$(BIN)/python tools/sweep.py $(OPTIONS)

faults: $(STAMP) ## break course_lib in many small ways: a test must notice each
	@$(BIN)/python tools/faults.py $(OPTIONS)

# --- the authors' targets ---
study: $(STAMP) ## run or resume a study: NAME=pruning_criteria OPTIONS='--jobs 2'
	@if [ ! -f "studies/$(NAME).py" ] || [ ! -n "$(NAME)" ]; then \
		echo "make: name a study: make study NAME=pruning_criteria; there are:" $$(cd studies && ls -1 *_*.py | sed 's/\.py$$//'); exit 1; fi
	@$(BIN)/python studies/$(NAME).py $(OPTIONS)

execute: $(STAMP) ## run notebooks and store their outputs; one only: NB=book/NAME.ipynb
	@$(BIN)/python tools/execute.py $(if $(NB),"$(NB)")

constraints: $(STAMP) ## write constraints.txt from what is installed (in a fresh environment)
	@$(BIN)/python tools/constraints.py

clean: ## remove everything that was built
	rm -rf _build build *.egg-info

distclean: clean ## remove the environment as well
	rm -rf $(VENV)
