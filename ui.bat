@echo off
rem Starts the user interface; the first time it sets up its own environment.
cd /d "%~dp0"
set PYTHON=python
where py >nul 2>nul && set PYTHON=py -3
%PYTHON% install.py ui %*
if errorlevel 1 pause
